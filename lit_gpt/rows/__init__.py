"""Which tokens share a row, and which row comes when.

In go the lengths of a store's documents, out come rows of segments, packed once and kept on disk, and the
order in which training reads them. Open `rows` (the type, its tokens, its file), `bin_packing` (cuts
documents into rows), `packed_store` (with `packable`, what it refuses), `store_entry` (DIR@LO-HI:WEIGHT),
then `sample_order` with `mixture` and `feistel`.
"""
