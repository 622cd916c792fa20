"""What several verbs share: options, progress, printed lines and tables, signals."""
