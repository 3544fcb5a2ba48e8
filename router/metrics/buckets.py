"""Histograms' bounds. Those of OpenTelemetry's names are the convention's; seconds where nothing else is said.

Source: OpenTelemetry semantic conventions for generative AI metrics; vLLM's metrics.
"""

FIRST_TOKEN = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
)  # fmt: skip
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
DURATION = tuple(0.01 * 2**k for k in range(17))
SPEED = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
"""Tokens a second."""
OVERHEAD = (.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1)  # fmt: skip
LAG = (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5)  # fmt: skip
"""From what uvloop's timers round to, to what makes a health check fail."""
