"""Repeatable benchmarks, each printing a small table and JSON; they need only `model/` and its imports."""
