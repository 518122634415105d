"""What a model, its data and its checkpoints are; imports no other folder.

cli.py, option_types.py, option_parser.py and errors.py make commands; files.py and hashed_files.py do all
durable file operations. Rooms, lower floors first: model and checkpoint; store (text as numbers); rows
(which tokens share a row); hf (Hugging Face folders).
"""
