"""The replica: one process with one model version on one device, pulling batches.

`__main__` starts it, `process` carries it from its first Join to its leaving, `link` makes
its calls, `exchange` decides which call comes next, `runner` turns a lease into an outcome,
and `backends` hold the model runtimes. Nothing here imports a runtime before a model that
needs it is assigned.
"""
