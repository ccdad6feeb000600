"""What `import deepavfusion` offers to other programs: `load`, `Model`, its results, and `datasets`."""
