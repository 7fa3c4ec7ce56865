"""PolicyOptimizer in other people's training loops: docs/integrations.md has a recipe for each.

Each module needs a package of its own and is imported only by who asks for it.
"""
