"""Raw text in: documents, sentences, pieces. Knows no model and no TensorFlow."""
