"""What the station guarantees, at full length, on a real broker: `python -m soak` in tests/.

A benchmark that prints its figures. `make test` runs the same code with small numbers. What a
scenario finds is of two kinds: a guarantee that was broken (a violation, wherever it runs), and a
figure beyond its limit, which only means something on a machine that has nothing else to do.
"""
