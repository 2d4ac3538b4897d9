"""A DICOM node: studies come in by C-STORE, their missing series go back by C-STORE or STOW-RS.

receive.py   the door: who may call, and each object on the disk and in the ledger before it is answered for
ledger.py    what stands where, in SQLite; a node that was killed goes on from it
work.py      a study that is quiet and whole is completed, once
deliver.py   results on their way; what the PACS does not take now is offered again later
run.py       all of it until told to stop
"""
