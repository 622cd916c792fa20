"""What `vidgraph report` writes: runs are found and read, facts become a document, the document
HTML, Markdown and CSV.
"""
