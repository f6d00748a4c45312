"""Tours of the commands that the longer tours leave out, each over a small capture. `demo/tour.py` runs them, too."""

from __future__ import annotations

from demo.tours import CAPTURE_SMALL, Step

CAPTURE_MEDIUM = (
    "actstore capture demo/models/stdlib-llama build/demo/stdlib medium.actstore --precision int8 --max-tokens 40000"
)
LOST = "medium.actstore/captures/corpus/values/mlp.post/2/c/0/0"
"""A file of the first block of that capture."""
CAPTURE_MESSAGES = (
    "actstore capture demo/models/language-llama demo/models/language-llama/texts.jsonl.xz messages.actstore "
    "--label language --max-tokens 30000"
)
COMMANDS: dict[str, tuple[Step, ...]] = {
    "output-capture": (
        Step("", "actstore inspect demo/models/stdlib-llama"),
        Step("", CAPTURE_MEDIUM + " --dry-run"),
        Step("", CAPTURE_MEDIUM),
        Step("", "actstore verify medium.actstore"),
        Step("What is lost is computed again from the model; the others' bytes stay:", f"rm {LOST}"),
        Step("", "actstore repair medium.actstore"),
        Step("Values in another order on disk, without the model:", ""),
        Step("", "actstore reorder medium.actstore --order mlp.post=token"),
    ),
    "output-sizes": (Step("", "actstore sizes demo/models/stdlib-llama --tokens 1e9"),),
    "output-steps": (
        Step(
            "",
            "actstore plan demo/models/stdlib-llama build/demo/stdlib parts.actstore --precision int8 --max-tokens 40000",
        ),
        Step("", "actstore fill parts.actstore --worker 0/1"),
        Step("", "actstore finish parts.actstore"),
    ),
    "output-read": (
        Step("", CAPTURE_SMALL),
        Step("", "actstore info code.actstore"),
        Step("", "actstore stats code.actstore --sort max -k 5"),
        Step("", "actstore top code.actstore L3.N335 -k 2"),
        Step(
            "",
            'actstore sql code.actstore "select layer, avg(positive) as positive from neurons group by layer order by layer"',
        ),
        Step("", "actstore export code.actstore --output two.parquet --neurons L3.N335,L2.N42"),
    ),
    "output-copy": (
        Step("", CAPTURE_SMALL),
        Step("", "actstore copy code.actstore copy.actstore"),
    ),
    "output-explorer": (
        Step("", CAPTURE_SMALL),
        Step(
            "",
            "actstore serve code.actstore --no-browser --port 8017",
            ("", "explorer.png", "A neuron in the explorer, in light and dark"),
        ),
        Step("", "actstore site code.actstore code-site --neurons L3.N335,L2.N42 --texts 2"),
    ),
    "output-import": (
        Step("", "python demo/hidden_states.py demo/models/stdlib-llama build/demo/stdlib/330/keyword.py samples"),
        Step("", "actstore import samples samples.actstore --layers 1,2,3 --model demo/models/stdlib-llama"),
        Step("", "actstore stats samples.actstore --site resid.post -k 3"),
    ),
    "output-demo": (Step("", "actstore demo tour"),),
    "output-explanations": (
        Step("", CAPTURE_SMALL),
        Step(
            "",
            "actstore explain code.actstore L3.N335 --explainer-model qwen --exemplars 3 --score detection --dry-run",
        ),
    ),
    "output-naica-more": (
        Step("", "python demo/subject_questions.py qrneuron"),
        Step(
            "",
            "actstore questions demo/models/fact-llama qrneuron domains.actstore --preset qrnca-domain -k 4 "
            "--output domains.svg",
            ("domains.svg", "questions.svg", "Where the neurons of four domains are: domains × layers"),
        ),
        Step(
            "What suppressing and boosting them does to their own query and to others, on prompts that were left out; with two "
            "seeds an example, no measurement:",
            "actstore naica evaluate domains.actstore --method naica --method random --protocol prompt --seeds 2",
        ),
    ),
    "output-selectivity-more": (
        Step("", CAPTURE_MESSAGES),
        Step(
            "",
            "actstore selectivity messages.actstore --by language --overlap-map shared.svg",
            ("shared.svg", "overlap.svg", "How many of two languages' neurons both have: languages × languages"),
            max_lines=12,
        ),
        Step(
            "What switching them off does to perplexity, on three hundred tokens of each language:",
            "actstore selectivity evaluate messages.actstore --by language --max-tokens 300",
        ),
        Step(
            "The logit lens, of another capture in the same store:",
            "actstore capture demo/models/language-llama demo/models/language-llama/texts.jsonl.xz messages.actstore "
            "--name stream --site resid.post --max-tokens 3000",
        ),
        Step("", "actstore selectivity lens messages.actstore --capture stream"),
        Step("", "actstore selectivity lens-tokens messages.actstore --capture stream --at 0:12 -k 3"),
    ),
    "output-probe": (
        Step("", CAPTURE_MESSAGES),
        Step("", "actstore coverage probe messages.actstore --by language --positive de --negative en"),
    ),
    "output-graphs-more": (
        Step("", "actstore capture demo/models/stdlib-llama build/demo/stdlib less.actstore --max-tokens 6000"),
        Step("", "actstore graphs build less.actstore"),
        Step("", "actstore graphs similar less.actstore L3.N335 -k 3"),
        Step("", "actstore graphs repeats less.actstore -k 5"),
        Step(
            "How well graphs of three neurons predict windows that they were built without: from six thousand tokens they "
            "hardly do ([measured](#evaluation) on forty times as many). And which tokens of one neuron's exemplars cause "
            "its activation, as the model says:",
            "actstore graphs evaluate less.actstore --neurons L3.N335,L2.N42,L0.N389",
        ),
        Step("", "actstore graphs probe less.actstore --neurons L3.N335 --exemplars 4 --annotate graphs"),
    ),
    "output-multimodal-more": (
        Step("", "python demo/training/pictures.py few --number 12"),
        Step("", "actstore capture demo/models/shapes-llava few few.actstore --generate"),
        Step(
            "",
            "actstore multimodal map few.actstore L3.N201 --document 0 --output neuron.png",
            (
                "neuron.png",
                "neuron-map.png",
                "A picture, the map of one neuron's activations over it, and the map's mask",
            ),
        ),
        Step(
            "",
            "actstore multimodal saliency few.actstore --document 0 -k 5 --output saliency",
            (
                "saliency/0000-star.png",
                "saliency.png",
                "A picture, the map of a noun's saliency over it, and the map's mask",
            ),
        ),
        Step(
            "Properties of the neurons, with the patches of the pictures in random order, and what noise on their write "
            "vectors does:",
            "actstore multimodal shuffle few --output shuffled --patch 8 --captions few.actstore",
        ),
        Step("", "actstore capture demo/models/shapes-llava shuffled few.actstore --name shuffled"),
        Step("", "actstore multimodal properties few.actstore --capture corpus --shuffled shuffled -k 5"),
        Step("", "actstore multimodal causal few.actstore --capture corpus --max-nouns 4 -k 5 --no-gradient"),
    ),
    "output-edit-more": (
        Step("", CAPTURE_SMALL),
        Step("", "actstore edit suppress code.actstore --neurons L3.N335,L2.N42 --name without"),
        Step("", "actstore edit add code.actstore demo/data/intervention.json --name set"),
        Step("", "actstore edit list code.actstore"),
        Step("", "actstore edit show code.actstore without"),
        Step("Applied to a copy of the model's folder, and taken back there:", ""),
        Step("", "actstore edit apply code.actstore without --output edited-llama"),
        Step("", "actstore edit revert code.actstore without --model edited-llama --in-place"),
        Step("", "actstore edit delete code.actstore set"),
        Step("A domain's facts erased, of questions that a model of facts has answered:", ""),
        Step("", "python demo/subject_questions.py qrneuron"),
        Step(
            "",
            "actstore attribute demo/models/fact-llama qrneuron/data/subject_qa.json erased.actstore -k 3",
            max_lines=2,
        ),
        Step("", "actstore edit erase erased.actstore --by relation_name --value geography"),
    ),
}
"""Mark → the commands that are shown there."""
