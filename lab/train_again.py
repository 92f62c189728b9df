"""A button that trains a model again from within a chapter."""

from lab.background import Background


def train_button(train, steps, otherwise):
    """Show a button that calls ``train(progress)`` and shows what it returns.

    ``progress`` wraps the ``steps`` training steps, as in
    ``train(..., progress=progress)`` of the character model. Without a front
    end the text ``otherwise`` is shown, which says how to do the same.
    """
    return TrainAgain(train, steps).show(otherwise)


class TrainAgain(Background):
    """One training; ``said`` is its result as a sentence."""

    def __init__(self, train, steps):
        super().__init__("Train again", steps, f"{steps} steps")
        self.train = train
        self.said = ""

    def work(self):
        self.said = self.train(self.progress)
        return self.said

    def progress(self, steps):
        """Pass the steps on; show every twentieth."""
        for number, step in enumerate(steps, start=1):
            yield step
            if number % 20 == 0:
                self.step(number, f"step {number}")
