"""One job as a drawing or a document: pure functions from a record to text.

- layout: order of siblings, place and label of each node, and which nodes of a large tree to draw
- svg, dot, mermaid: the tree as a drawing; document: the job as JSON
"""
