#!/usr/bin/env bash
# The commands of docs/scaling.md on a real SLURM of two nodes, started on this machine for the time of the test and
# taken away again: `make test-cluster`, or `tests/cluster/slurm.sh usr1 killed` for some cases, `--list` for their names.
# As root on Debian or Ubuntu, in a container or a throw-away machine: it installs packages and adds a line to /etc/hosts.
# KEEP_PACKAGES=1 leaves the packages installed for the next time.
set -euo pipefail
cd "$(dirname "$0")/../.."
MARK="# tests/cluster/slurm.sh"

refuse() { echo "test-cluster: $*" >&2; exit 2; }

if [[ " $* " == *" --list "* ]]; then exec python tests/cluster/cases.py --list; fi
[[ $(id -u) == 0 ]] || refuse "slurmd has to be started by root: run it in a container, as root."
[[ $(nproc) -ge 2 ]] || refuse "$(nproc) core, two are needed."
command -v apt-get > /dev/null || refuse "there is no apt-get: expected Debian or Ubuntu, for slurm-wlm and munge."
running=$(ps -eo comm= | grep -xE 'slurmctld|slurmd|slurmstepd|munged' | sort -u | tr '\n' ' ' || true)
[[ -z $running ]] || refuse "this machine already runs ${running% }: use another one, where this test disturbs nobody."

state=$(mktemp -d /tmp/cluster.XXXXXX)
chmod 755 "$state"
mkdir -p "$state"/{state,spool/test-n1,spool/test-n2,log,munge}
cp -a /etc "$state/etc"
installed=()

ours() {  # processes of this cluster and of its jobs: SLURM_CONF is in the environment of all of them
  { grep -lsF "SLURM_CONF=$state/" /proc/[0-9]*/environ || true; } | cut -d/ -f3 | grep -vx "$$" || true
}

restore() {
  status=$?
  trap '' INT TERM HUP
  trap - EXIT
  set +e
  for signal in TERM KILL; do
    pids=$(ours)
    [[ -z $pids ]] || kill -"$signal" $pids 2> /dev/null
    for _ in $(seq 50); do [[ -z $(ours) ]] && break; sleep 0.1; done
  done
  if grep -qF "$MARK" /etc/hosts; then
    grep -vF "$MARK" /etc/hosts > "$state/hosts"
    cat "$state/hosts" > /etc/hosts  # in a container it is mounted, and cannot be replaced
  fi
  if (( ${#installed[@]} )) && [[ -z ${KEEP_PACKAGES:-} ]]; then
    DEBIAN_FRONTEND=noninteractive apt-get purge -y "${installed[@]}" >> "$state/log/apt.txt" 2>&1
    for user in munge slurm; do
      grep -q "^$user:" "$state/etc/passwd" || { userdel "$user"; groupdel "$user"; } 2> /dev/null
    done
  fi
  left=$(diff -rq --no-dereference -x '*-' "$state/etc" /etc)
  if [[ -n $left && -z ${KEEP_PACKAGES:-} ]]; then
    echo "test-cluster: /etc is not as it was:"$'\n'"$left" >&2
    (( status )) || status=1
  fi
  if (( status == 1 )); then
    rm -rf "$state/etc"
    echo "test-cluster: logs are in $state" >&2
  else
    rm -rf "$state"
  fi
  exit "$status"
}
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if ! command -v slurmctld slurmd munged srun > /dev/null; then
  echo "installing slurm-wlm and munge …"
  dpkg-query -W -f '${Package}\n' | sort > "$state/before"
  policy=/usr/sbin/policy-rc.d  # exists in containers: no service starts by itself
  [[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod 755 "$policy"; made=$policy; }
  for update in "" "apt-get update -qq"; do
    $update
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge \
      >> "$state/log/apt.txt" 2>&1 && break
  done || { tail -n 5 "$state/log/apt.txt" >&2; failed=1; }
  [[ -z ${made:-} ]] || rm "$made"
  mapfile -t installed < <(dpkg-query -W -f '${Package}\n' | sort | comm -13 "$state/before" -)
  [[ -z ${failed:-} ]] || refuse "slurm-wlm and munge could not be installed, see above."
fi

echo "127.0.0.1 test-n1 test-n2  $MARK" >> /etc/hosts
export SLURM_CONF=$state/slurm.conf
sed -e "s|@STATE@|$state|g" -e "s|@HOST@|$(hostname -s)|g" -e "s|@CPUS@|$(( $(nproc) < 4 ? $(nproc) : 4 ))|g" \
  tests/cluster/slurm.conf > "$SLURM_CONF"
touch "$state/gpu0" "$state/gpu1"  # they play GPUs
for node in test-n1 test-n2; do echo "NodeName=$node Name=gpu File=$state/gpu[0-1]"; done > "$state/gres.conf"
head -c 1024 /dev/urandom > "$state/munge/key"
chmod 600 "$state/munge/key"
munged --key-file="$state/munge/key" --socket="$state/munge/socket" --pid-file="$state/munge/pid" \
  --log-file="$state/log/munged.log" --seed-file="$state/munge/seed" --force 2> "$state/log/munged.txt"
slurmctld
for node in test-n1 test-n2; do slurmd -N "$node"; done
for _ in $(seq 100); do
  [[ $(sinfo -h -p gpu -t idle -o %D 2> /dev/null) == 2 ]] && break
  sleep 0.2
done
[[ $(sinfo -h -p gpu -t idle -o %D) == 2 ]] || { tail "$state"/log/*.log >&2; refuse "the nodes did not come up."; }
sinfo --version
python tests/cluster/cases.py "$state" "$@"
