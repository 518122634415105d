"""To and from Hugging Face folders.

Out: trained_model.py opens a checkpoint with its tokenizer, exporter.py writes the folder, model_card.py its
README.md. In: importer.py makes a checkpoint to start from, extended_vocabulary.py gives it rows for new
tokens. merging.py makes one folder's tensors from several. All use mapping.py (config.json, names and layouts
of tensors).
"""
