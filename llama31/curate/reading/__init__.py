"""From archives and files to documents with url, date, source and language, or counted by kind.

Imports: datatrove, fastwarc, pyarrow; codes, the names of languages.
Offers: documents (what readers share: limits, counts, dates), bodies (encodings and charsets of HTTP), warc (archives),
files (folders of HTML, JSON lines, Parquet, datasets on disk).
"""
