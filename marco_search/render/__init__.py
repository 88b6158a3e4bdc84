"""One job as a picture or a document, as pure functions: a record in, text out.

- order, layout: which child comes first, and where every node stands; the same in all of them
- document: the job as JSON, which the HTML file and the console's page read as well
- svg, dot, mermaid: the tree as a drawing
- vocabulary: what the candidates that were not chosen would have read
"""
