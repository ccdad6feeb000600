"""Synthesised instruments for the demo data: eight timbres that differ in the local texture of their notes.

Melody, register, tempo, loudness, the room's tone colour and background noise have the same distributions for
every class, so no single band or level tells the instrument; attack, decay, vibrato, beating, inharmonic partials
and noise bursts do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Signal = NDArray[np.float32]

SAMPLE_RATE = 16_000  # Hz

# How hard it is to hear the class: wider ranges hide it better. Change VERSION in demo.py with them.
REGISTER = (53.0, 69.0)  # lowest note of a melody, MIDI numbers; the same for every class
OWN_REGISTER = {  # the same on a stage, where each instrument has a register of its own
    "drum": REGISTER,
    "flute": (78.0, 84.0),
    "guitar": (37.0, 43.0),
    "violin": (69.0, 75.0),
}
TEMPO = (70.0, 170.0)  # beats per minute
REST = 0.12  # probability that a beat is silent
TILT_DB = 3.0  # spectral tilt of a clip, ± dB per octave around 1 kHz
ROOM_DB = 5.0  # ± dB of the clip's random tone filter
REVERB = (0.0, 0.25)  # share of reverberation
NOISE_DB = (-60.0, -42.0)  # background noise relative to the music
LOUDNESS_DB = 5.0  # ± dB around MEAN_LOUDNESS
MEAN_LOUDNESS = -24.0  # dB relative to full scale, root mean square
BALANCE_DB = 3.0  # ± dB between instruments that sound together


@dataclass(frozen=True)
class Note:
    """Start and length in seconds, frequency in Hz, strength in 0…1."""

    start: float
    length: float
    frequency: float
    strength: float


def melody(rng: Generator, seconds: float, register: tuple[float, float] = REGISTER) -> list[Note]:
    """A random tune whose lowest note lies in `register`, MIDI numbers."""
    lowest, beat = rng.uniform(*register), 60.0 / rng.uniform(*TEMPO)
    notes: list[Note] = []
    time = rng.uniform(0.0, 0.3)
    while time < seconds - 0.1:
        length = beat * rng.choice([0.5, 1.0, 1.0, 2.0])
        if rng.random() > REST or not notes:
            pitch = lowest + rng.choice([0, 2, 4, 5, 7, 9, 12, 14])
            notes.append(Note(time, length, 440.0 * 2.0 ** ((pitch - 69) / 12), rng.uniform(0.5, 1.0)))
        time += length
    return notes


def perform(instrument: str, notes: list[Note], rng: Generator, seconds: float) -> Signal:
    """The notes played on an instrument of `VOICES`; [T], unit root mean square."""
    total = round(seconds * SAMPLE_RATE)
    out = np.zeros(total, np.float32)
    character = rng.random(3)  # this one instrument among its kind
    for note in notes:
        sound = VOICES[instrument](note.frequency, note.length, rng, character)
        first = round(note.start * SAMPLE_RATE)
        sound = sound[: total - first]
        out[first : first + len(sound)] += note.strength * sound
    return colour(out / _rms(out), rng)


def mix(parts: list[Signal], rng: Generator) -> Signal:
    """Several instruments in one room with its reverberation and background noise; [T] in [−1, 1]."""
    levels = 10 ** (rng.uniform(-BALANCE_DB, BALANCE_DB, len(parts)) / 20)
    dry = np.sum([level * part for level, part in zip(levels, parts, strict=True)], axis=0).astype(np.float32)
    length = round(rng.uniform(0.05, 0.3) * SAMPLE_RATE)
    echo = rng.standard_normal(2 * length) * np.exp(-np.arange(2 * length) * 3.0 / length)
    size = 1 << (len(dry) + len(echo)).bit_length()
    wet = np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(echo, size), size)[: len(dry)]
    share = rng.uniform(*REVERB)
    music = (1 - share) * dry + share * wet * (_rms(dry) / _rms(wet))
    hiss = colour(rng.standard_normal(len(dry)).astype(np.float32), rng)
    music = music / _rms(music) + hiss / _rms(hiss) * 10 ** (rng.uniform(*NOISE_DB) / 20)
    loudness = MEAN_LOUDNESS + rng.uniform(-LOUDNESS_DB, LOUDNESS_DB)
    music *= min(10 ** (loudness / 20) / _rms(music), 0.97 / float(np.abs(music).max()))
    return music.astype(np.float32)


def colour(signal: Signal, rng: Generator) -> Signal:
    """A random smooth filter: tilt and two ripples over the octaves."""
    spectrum = np.fft.rfft(signal)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE), 60.0) / 1000.0)
    gain = rng.uniform(-TILT_DB, TILT_DB) * octaves
    for _ in range(2):
        ripple, phase = rng.uniform(0.25, 1.2), rng.uniform(0, 2 * np.pi)
        gain += rng.uniform(-ROOM_DB, ROOM_DB) * np.sin(2 * np.pi * ripple * octaves + phase)
    out = np.fft.irfft(spectrum * 10 ** (gain / 20), len(signal)).astype(np.float32)
    return out / _rms(out)


def _rms(signal: NDArray) -> float:
    return float(np.sqrt(np.mean(np.square(signal, dtype=np.float64)))) + 1e-9


# ---- the voices: (frequency in Hz, length of the note in s, rng, character [3] in 0…1) -> samples


def _time(seconds: float) -> Signal:
    return (np.arange(max(int(seconds * SAMPLE_RATE), 8)) / SAMPLE_RATE).astype(np.float32)


def _partials(frequency: float, most: int = 40) -> NDArray:
    return np.arange(1, max(2, min(most, int(7600 / frequency)) + 1))


def _harmonics(phase: NDArray, amplitudes: NDArray, shrink: NDArray | float = 1.0) -> Signal:
    """Σ_k amplitude_k · shrink^(k−1) · sin(k · phase); `shrink` in time makes high partials fade or grow."""
    step = (shrink * np.exp(1j * phase)).astype(np.complex64)
    power = np.exp(1j * phase).astype(np.complex64)
    out = amplitudes[0] * power.imag
    for amplitude in amplitudes[1:]:
        power *= step
        out = out + amplitude * power.imag
    return out.astype(np.float32)


def _attack(time: Signal, seconds: float) -> Signal:
    return np.minimum(time / seconds, 1.0)


def _sustain(time: Signal, length: float, attack: float, release: float) -> Signal:
    """Rises in `attack`, holds for `length`, falls in `release` seconds."""
    fall = np.clip((length + release - time) / release, 0.0, 1.0)
    return np.sin(np.pi / 2 * _attack(time, attack)) * fall


def _noise(rng: Generator, count: int, low: float, high: float) -> Signal:
    """White noise between two frequencies, unit root mean square."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    spectrum[(frequency < low) | (frequency > high)] = 0
    out = np.fft.irfft(spectrum, count).astype(np.float32)
    return out / _rms(out)


def _guitar(frequency: float, length: float, rng: Generator, character: NDArray) -> Signal:
    """Plucked: a comb from the place of the pluck, high partials die first, the rest rings on."""
    time = _time(min(length, 0.6) + 0.9)
    k = _partials(frequency)
    amplitudes = np.abs(np.sin(np.pi * k * (0.17 + 0.1 * character[0]))) / k
    ring = np.exp(-(1.6 + 1.5 * character[1]) * time)
    return _attack(time, 0.003) * ring * _harmonics(2 * np.pi * frequency * time, amplitudes, np.exp(-1.0 * time))


def _violin(frequency: float, length: float, rng: Generator, character: NDArray) -> Signal:
    """Bowed: slow attack, all harmonics, wide vibrato that sets in late, rosin noise."""
    time = _time(length + 0.08)
    rate, depth = 5.0 + 1.5 * character[0], 0.016 + 0.01 * character[1]
    late = np.clip(time / 0.12, 0, 1)
    phase = 2 * np.pi * frequency * time + depth * late * frequency / rate * np.sin(2 * np.pi * rate * time)
    tone = _harmonics(phase, 1 / _partials(frequency) ** 0.9)
    bow = 0.05 * _noise(rng, len(time), 1500, 6000)
    return _sustain(time, length * 0.95, 0.09, 0.07) * (tone + bow)


def _flute(frequency: float, length: float, rng: Generator, character: NDArray) -> Signal:
    """Blown: three harmonics, breath noise, a chiff at the start, tremolo."""
    time = _time(length + 0.05)
    amplitudes = np.array([1.0, 0.35 + 0.3 * character[0], 0.15, 0.04])
    tremolo = 1 + 0.35 * np.sin(2 * np.pi * (4.5 + 1.5 * character[1]) * time + 6.28 * rng.random())
    tone = tremolo * _harmonics(2 * np.pi * frequency * time, amplitudes)
    breath = _noise(rng, len(time), 1000, 7000) * (0.10 + 0.5 * np.exp(-time / 0.03))
    return _sustain(time, length * 0.9, 0.05, 0.05) * (tone + breath)


def _trumpet(frequency: float, length: float, rng: Generator, character: NDArray) -> Signal:
    """Brass: the harmonics come in one after the other, then stand still; the pitch scoops up."""
    time = _time(length + 0.04)
    brightness = 0.45 + (0.5 + 0.04 * character[0]) * (1 - np.exp(-time / 0.07))
    scoop = -0.05 * 0.04 * frequency * (1 - np.exp(-time / 0.04))  # in turns
    amplitudes = 1 / _partials(frequency) ** 0.2
    tone = _harmonics(2 * np.pi * (frequency * time + scoop), amplitudes, brightness)
    return _sustain(time, length * 0.85, 0.02, 0.04) * tone


def _piano(frequency: float, length: float, rng: Generator, character: NDArray) -> Signal:
    """Struck: stretched partials in beating pairs, a hammer's thump, a fast and then a slow decay, damped."""
    time = _time(length + 0.12)
    stiffness = 0.0012 + 0.0012 * character[0]
    tone = np.zeros_like(time)
    for k in _partials(frequency, 16):
        place = 2 * np.pi * k * frequency * np.sqrt(1 + stiffness * k * k)
        if place < 2 * np.pi * 7600:
            pair = np.sin(place * time) + np.sin(place * 1.002 * time + k)
            tone += pair * np.exp(-time * (0.8 + 0.35 * k)) / k**0.8
    decay = 0.6 * np.exp(-time / 0.12) + 0.4
    thump = 0.8 * _noise(rng, len(time), 80, 900) * np.exp(-time / 0.02)
    return _attack(time, 0.002) * (decay * tone + thump) * np.clip((length + 0.1 - time) / 0.1, 0, 1)


def _drum(frequency: float, length: float, rng: Generator, character: NDArray) -> Signal:
    """One of kick, snare, hi-hat and tom; the melody's pitch only tunes the skins."""
    time = _time(0.4)
    kind = rng.integers(4)
    skin = frequency * (0.3, 0.6, 0.0, 0.5)[kind]
    sweep = np.sin(2 * np.pi * skin * (time + 0.05 * (1 - np.exp(-time / 0.03))))
    body = sweep * np.exp(-time / (0.1, 0.06, 1.0, 0.15)[kind])
    low, high, level, ring = (
        (200, 3000, 0.4, 0.01),
        (700, 7000, 1.2, 0.07 + 0.04 * character[0]),
        (3500, 7900, 1.2, 0.03 + 0.06 * character[1]),
        (200, 2000, 0.4, 0.02),
    )[kind]
    return _attack(time, 0.001) * (body + level * _noise(rng, len(time), low, high) * np.exp(-time / ring))


def _banjo(frequency: float, length: float, rng: Generator, character: NDArray) -> Signal:
    """Plucked twice in quick succession: a snap, bright partials that all die fast, a falling pitch."""
    time = _time(0.3)
    k = _partials(frequency)
    amplitudes = np.abs(np.sin(np.pi * k * 0.07)) / k**0.4
    fall = 0.03 * 0.02 * frequency * (1 - np.exp(-time / 0.03))
    ring = np.exp(-time * (14 + 8 * character[0]))
    snap = 0.7 * _noise(rng, len(time), 2000, 7500) * np.exp(-time / 0.006)
    tone = _harmonics(2 * np.pi * (frequency * time + fall), amplitudes, np.exp(-0.5 * time))
    pluck = _attack(time, 0.001) * (ring * tone + snap)
    gap = round((0.09 + 0.03 * character[1]) * SAMPLE_RATE)
    return np.concatenate([pluck[:gap], pluck[gap:] + 0.8 * pluck[:-gap], 0.8 * pluck[-gap:]])


def _accordion(frequency: float, length: float, rng: Generator, character: NDArray) -> Signal:
    """Reeds: odd harmonics, a second reed tuned apart so that the tone beats, and a fifth above."""
    time = _time(length + 0.05)
    k = _partials(frequency * 1.5, 25)
    amplitudes = np.where(k % 2 == 1, 1.0, 0.08) / k**0.7
    beat = 6.0 + 4.0 * character[0]  # Hz
    chord = np.zeros_like(time)
    for ratio, level in ((1.0, 1.0), (1.4983, 0.5)):
        phase = 2 * np.pi * frequency * ratio * time
        chord += level * _harmonics(phase, amplitudes)
        chord += level * _harmonics(phase * (1 + beat / frequency), amplitudes)
    return _sustain(time, length, 0.03, 0.04) * chord


VOICES: dict[str, Callable[[float, float, Generator, NDArray], Signal]] = {
    play.__name__[1:]: play for play in (_guitar, _violin, _flute, _trumpet, _piano, _drum, _banjo, _accordion)
}
