"""A knob of several tick boxes: any of a few names, one box for each."""

import ipywidgets as widgets
import traitlets

from lab.parameters import listed, some_of


class Ticks(widgets.VBox):
    """A box for each of `names`; `value` lists the ticked ones as one text.

    The text separates them by commas, in the order of `names`, so that it can
    be a parameter of a notebook: "top-k, THOR".
    """

    value = traitlets.Unicode()
    description = traitlets.Unicode()

    def __init__(self, names, value, description=""):
        self.rule = some_of(*names)
        self._boxes = {
            name: widgets.Checkbox(
                description=name,
                indent=False,
                layout=widgets.Layout(width="135px"),
            )
            for name in names
        }
        self._head = widgets.Label()
        row = widgets.Box(
            list(self._boxes.values()),
            layout=widgets.Layout(display="flex", flex_flow="row wrap"),
        )
        super().__init__(
            [self._head, row],
            value=value,
            description=description,
            layout=widgets.Layout(width="100%"),
        )
        self._name_it()
        self._tick()
        for box in self._boxes.values():
            box.observe(self._ticked, "value")

    @traitlets.validate("value")
    def _checked(self, proposal):
        value = proposal["value"]
        if not self.rule.accepts(value):
            raise ValueError(
                f"{value!r} is not allowed; use {self.rule.allowed}"
            )
        wanted = listed(value)
        return ", ".join(name for name in self._boxes if name in wanted)

    @traitlets.observe("description")
    def _name_it(self, _change=None):
        if hasattr(self, "_head"):
            self._head.value = self.description

    @traitlets.observe("value")
    def _tick(self, _change=None):
        wanted = listed(self.value)
        # or each box would report its own change
        self._held = True
        for name, box in self._boxes.items():
            box.value = name in wanted
        self._held = False

    def _ticked(self, _change):
        if self._held:
            return
        ticked = [name for name, box in self._boxes.items() if box.value]
        self.value = ", ".join(ticked)
