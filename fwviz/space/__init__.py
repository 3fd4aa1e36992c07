"""The flat parameter space: layouts, binding of modules, and task vectors. It knows no model family and no task."""
