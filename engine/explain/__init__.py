"""Explanations of neurons in words, written by a language model behind a server, and scores of how much they explain.

As the literature does it (Bills et al. 2023; Paulo et al. 2024, arXiv 2410.13928): a model is shown excerpts in which a neuron
fires, with the tokens marked, and says in a sentence what they have in common. The sentence is scored by questions that whoever
knows only the sentence should be able to answer about other excerpts: *detection* asks in which of them the neuron fires,
*fuzzing* whether the right tokens are marked. The neuron's graph, built without these excerpts, answers the same questions
without any server.

- `settings` are what decides prompts and questions; `excerpts` the choice of excerpts, `neighbours` those that are harder.
- `prompts` has the words that are sent, and reads the answers; `client` sends them; `questions` puts excerpts into requests.
- `graph_answers` lets the neuron's graph answer; `run` carries all of it out, and keeps it in the store.
"""
