"""One pipeline of `nano_sim`, event by event: its reference."""

OPERATIONS = ("KQV", "attn", "AG", "O", "AG", "UG", "D", "AR")
COMPUTE, MEMORY, NETWORK = range(3)  # the streams, one for each resource
STREAM = (
    COMPUTE, MEMORY, NETWORK, COMPUTE, NETWORK, COMPUTE, COMPUTE, NETWORK,
)  # fmt: skip
WHOLE = 1000  # a rate of one, in thousandths


class Pipeline:
    """N nano-batches on their way through the operations of some layers.

    ``durations`` [N][8] are whole nanoseconds; ``shares`` and ``behind`` are a
    row of what `nano_sim` takes. ``jobs`` keeps what the streams did: (stream,
    operation, layer, nano-batch, start, end).
    """

    def __init__(self, durations, shares, behind, layers):
        self.durations, self.layers = durations, layers
        self.mine = dict(zip((MEMORY, NETWORK), shares[::2], strict=True))
        self.speed = dict(zip((MEMORY, NETWORK), shares[1::2], strict=True))
        self.behind = behind
        self.operation = [0] * len(durations)
        self.layer = [0] * len(durations)
        self.running = {}  # stream: nano-batch
        self.left = {}  # stream: work, in thousandths of a nanosecond
        self.begun = {}
        self.now = 0
        self.jobs = []

    def run(self):
        """The times at which all nano-batches have left each layer."""
        finish = []
        while len(finish) < self.layers:
            self.start()
            self.advance()
            if min(self.layer) > len(finish):
                finish.append(self.now)
        return finish

    def start(self):
        """Every free stream takes the first of what is ready for it."""
        taken = self.running.values()
        ready = [
            (self.place(n), n)
            for n, layer in enumerate(self.layer)
            if layer < self.layers and n not in taken
        ]
        for _, n in sorted(ready):
            stream = STREAM[self.operation[n]]
            if stream not in self.running:
                self.running[stream] = n
                work = self.durations[n][self.operation[n]]
                self.left[stream] = WHOLE * work
                self.begun[stream] = self.now

    def place(self, n):
        """The earliest layer goes first; within it, the first nano-batch, or
        the one that is furthest behind."""
        step = self.operation[n] if self.behind else 0
        return len(OPERATIONS) * self.layer[n] + step

    def advance(self):
        """To the next end of an operation, at the rates that hold until then.

        Works are whole and times are rounded up, so no machine can round
        differently and settle a tie in another way.
        """
        rates = self.rates()
        # rounded up: -(-a // b)
        wait = min(-(-self.left[s] // rate) for s, rate in rates.items())
        self.now += wait
        for stream, rate in rates.items():
            self.left[stream] -= rate * wait
            if self.left[stream] <= 0:
                self.finish(stream, self.running.pop(stream))

    def rates(self):
        """How fast each running operation is, in thousandths."""
        if COMPUTE not in self.running:
            return dict.fromkeys(self.running, WHOLE)
        rates = {s: self.speed[s] for s in self.running if s != COMPUTE}
        # a GEMM has what the others leave
        return {COMPUTE: WHOLE - sum(self.mine[s] for s in rates)} | rates

    def finish(self, stream, n):
        operation, layer = self.operation[n], self.layer[n]
        self.jobs.append(
            (stream, operation, layer, n, self.begun[stream], self.now)
        )
        self.operation[n] = (operation + 1) % len(OPERATIONS)
        self.layer[n] += self.operation[n] == 0
