"""Reading English news: sentences, names, numbers, near-duplicates. Nothing here knows of models or scripts."""
