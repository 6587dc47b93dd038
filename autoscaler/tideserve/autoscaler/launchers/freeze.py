"""Imported by the forkserver after everything else: what it imported is left alone by the collector.

Without that a collection in a replica writes to each object that it inherited, and so has a page of
its own for what all could share: some 7 MB a replica (https://docs.python.org/3/library/gc.html#gc.freeze).
"""

import gc

gc.collect()
gc.freeze()
