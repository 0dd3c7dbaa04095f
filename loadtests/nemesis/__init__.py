"""The parts of `loadtests/chaos.py`: what is drawn, done, seen and judged in a run with faults."""
