"""Using trained stages: embeddings of a store, and text to video."""
