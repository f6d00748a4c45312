"""`store.explain`: neurons in words, task of a language model's server, and how much the words explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from actstore.api.light import explains
from actstore.api.method import Method
from actstore.api.neurons import chosen_neurons
from actstore.api.results import Answer
from actstore.store.arguments import argument
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.neurons import neuron_name
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from actstore.api.neurons import NeuronInput
    from actstore.engine.explain.run import DryRun, ExplainReport, ExplainTask


@explains
class ExplainMethod(Method):
    """Explanations of neurons, and their scores (Bills et al. 2023; Paulo et al. 2024, arXiv 2410.13928)."""

    _reached_as: ClassVar[str] = "store.explain"

    def __call__(
        self,
        neurons: NeuronInput | Iterable[NeuronInput] | None = None,
        *,
        layers: Sequence[int] | None = None,
        endpoint: str = "",
        explainer_model: str = "",
        score: Sequence[str] = (),
        scorer_model: str = "",
        limit: int | None = None,
        dry_run: bool = False,
        name: str = "explanations",
        exemplars: int = 20,
        tests: int = 20,
        quantiles: int = 10,
        context: int = 32,
        share: float = 0.5,
        others: str = "random",
        batch: int = 5,
        temperature: float = 0.0,
        max_new_tokens: int = 1000,
        seed: int = 0,
        key_variable: str = "OPENAI_API_KEY",
        requests: int = 4,
        timeout_s: float = 120.0,
        retries: int = 5,
        site: str = "mlp.post",
        capture: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Answer[ExplainReport] | Answer[DryRun]:
        """Asks a server to explain neurons by excerpts in which they fire, and scores the explanations; the store keeps both.

        What is there already is not asked for again: the same call goes on after whatever stopped it.

        - `neurons`: names or (layer, index); `layers`, in place of them: all neurons of these.
        - `endpoint`: address of any server with OpenAI's chat completions, such as `http://localhost:8000/v1`.
        - `explainer_model`, `scorer_model`: the models, as the server calls them; the second is the first unless given.
        - `score`: some of `detection`, `fuzzing` (by the server) and `graph` (by the neuron's graph, without one).
        - `limit`: maximum number of neurons that something is missing of.
        - `dry_run`: show the requests and count their tokens; nothing is sent, and nothing written.
        - `name`: of the explanations; a store holds many, each with settings of its own.
        - `exemplars`: excerpts with firing that the explainer is shown; `tests`: others that test the explanation, and as many
          without firing.
        - `quantiles`: parts of the firing excerpts by activation, each of which gives as many.
        - `context`: tokens per excerpt; `share`: a neuron fires from this share of its maximum over the capture.
        - `others`: excerpts without firing are `random`, or those in which the `nearest` neurons by coactivation fire.
        - `batch`: excerpts per request to the scorer.
        - `temperature`, `max_new_tokens`, `seed`: of the answers; `seed` also of what is drawn here.
        - `key_variable`: environment variable with the server's key, which is never written down; empty for none.
        - `requests`: maximum number of requests at once; `timeout_s`, `retries`: how patiently.
        - `progress`: called with the neurons done and their number.

        The table has the columns of the table `explanations` of SQL; of a dry run name, purpose, n_tokens, system, user.

        >>> store.explain(["L3.N17"], endpoint="http://localhost:8000/v1", explainer_model="qwen", score=["detection"])
        """
        from actstore.engine.explain.run import ExplainTask
        from actstore.engine.explain.settings import ExplainSettings, ServerSettings

        settings = ExplainSettings(
            exemplars, tests, quantiles, context, share, others, batch, seed, scorer_model, temperature, max_new_tokens
        )
        server = ServerSettings(endpoint, key_variable, requests, timeout_s, retries)
        scores = argument("score", score, tuple[str, ...])
        task = ExplainTask(name, site, explainer_model, scores, limit, settings, server)
        return answer_explain(self._store, capture, neurons, layers, task, dry_run=dry_run, progress=progress)

    def table(self, name: str | None = None) -> Table:
        """The explanations of a name, or all of the store, with their scores: the table `explanations` of SQL.

        >>> store.explain.table().to_pandas().sort_values("detection")
        """
        from actstore.store.explanations.record import explanation_names
        from actstore.store.explanations.tables import explanation_table

        folder, known = self._store.folder, explanation_names(self._store.folder)
        if name is not None and name not in known:
            raise NotFoundError(
                f"{folder} has no explanations {name!r}. Those it has: {', '.join(known) or 'none'}. Check `name`."
            )
        return Table(explanation_table(folder, "explanations", None if name is None else (name,)))


def answer_explain(
    store: Any,
    capture: str | None,
    neurons: NeuronInput | Iterable[NeuronInput] | None,
    layers: Sequence[int] | None,
    task: ExplainTask,
    *,
    dry_run: bool,
    progress: Callable[[int, int], None] | None,
) -> Answer[ExplainReport] | Answer[DryRun]:
    """The answer of `ExplainMethod`."""
    from actstore.engine.explain.run import explain_neurons, plan_requests
    from actstore.store.explanations.tables import explanation_table
    from actstore.store.storage.folder import Folder

    opened = store.capture(capture)
    pairs = chosen_neurons(opened, task.site, neurons, argument("layers", layers, tuple[int, ...] | None))
    if pairs is None:
        raise InvalidInputError("Name the neurons to explain, by `neurons` or `layers`: each takes several requests.")
    if dry_run:
        plan = plan_requests(opened, opened.folder, pairs, task)
        return Answer(Table(request_table(plan)), plan, notices(plan))
    folder = Folder(opened.folder, read_only=False)
    report = explain_neurons(opened, folder, pairs, task, progress or (lambda done, n_neurons: None))
    table = explanation_table(opened.folder, "explanations", (task.name,))
    names = pa.array([neuron_name(*pair) for pair in pairs], pa.string())
    return Answer(Table(table.filter(pc.is_in(table["name"], value_set=names))), report, notices(report))


def request_table(plan: DryRun) -> pa.Table:
    """One row per request of a dry run: name, purpose, n_tokens, system, user."""
    requests = plan.requests
    names = [neuron_name(one.layer, one.neuron) for one in requests]
    columns: dict[str, Any] = {
        "name": pa.array(names, pa.string()),
        "purpose": pa.array([one.purpose for one in requests], pa.string()),
        "n_tokens": pa.array(plan.n_tokens, pa.int64()),
    }
    for number, role in enumerate(("system", "user")):
        columns[role] = pa.array([one.messages[number]["content"] for one in requests], pa.string())
    return pa.table(columns)


def notices(done: DryRun | ExplainReport) -> tuple[str, ...]:
    """Sentences about what cannot be explained or scored, and about answers without an explanation."""
    reasons: dict[str, list[str]] = {}
    for what, reason in done.skipped.items():
        reasons.setdefault(reason, []).append(what)
    for name in getattr(done, "malformed", ()):
        reasons.setdefault("the answer holds no explanation, and the next run asks again", []).append(name)
    return tuple(f"Left out: {_few(sorted(names))}, as {reason}." for reason, names in reasons.items())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
