"""The student: base model, training data, LoRA adapter, and the merged model."""
