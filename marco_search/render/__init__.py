"""One job as a drawing or a document: pure functions from a record to text.

- layout: order of siblings, place and label of each node, and which nodes of a large tree to draw
- drawings: the tree as SVG, for Graphviz and Mermaid; document: the job as JSON
"""
