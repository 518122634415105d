"""What a model, its data and its checkpoints are; imports no other folder.

cli.py, option_types.py, option_parser.py and errors.py make commands; files.py, hashed_files.py and
build_once.py do all durable file operations; hidden_characters.py is for text that is shown. Rooms, lower
floors first: model and checkpoint; store (text as numbers); rows (which tokens share a row); hf (Hugging Face
folders).
"""
