"""The paper's tables, figures and speed benchmarks: `python -m paper NAME`, run from the checkout.

An experiment lists the cells that it needs, measures them, and makes its page and figures from the result
(JSON) alone. Cells are stored on disk: nothing is measured twice, and several processes can share the work.
The pages in docs/results can be made again from their JSON; no figure is typed.

`paper` imports `craft`; `craft` never imports `paper`. The package is not in the wheel.
"""
