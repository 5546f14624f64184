"""Every sampling option once, and all of them together."""

from __future__ import annotations

from shared.protocol.messages import Bias, Sampling

BIASES = (Bias(28, 6.0), Bias(260, -100.0), Bias(30, -3.0))
OPTIONS = {
    "greedy": Sampling(),
    "temperature": Sampling(1.0, seed=-3),
    "top-k": Sampling(1.2, top_k=20, seed=4),
    "top-p": Sampling(0.8, top_p=0.9, seed=5),
    "min-p": Sampling(1.1, min_p=0.05, seed=6),
    "presence": Sampling(presence_penalty=2.0),
    "frequency": Sampling(0.7, seed=8, frequency_penalty=0.8),
    "repetition": Sampling(repetition_penalty=1.3),
    "bias": Sampling(0.9, top_p=0.95, seed=10, logit_bias=BIASES),
    "all": Sampling(0.9, 50, 0.95, 0.01, 11, 0.5, 0.5, 1.1, BIASES),
}
