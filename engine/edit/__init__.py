"""Editing: which weights to change so that a model says one word in place of another, and what else such an edit changes.

Answers what becomes of a model's answers when the write vectors, or the activations, of a few neurons are changed. A rewrite
finds the new rows by one of the forms in `forms.table.FORMS`: least-norm, from the store alone and ours; FiNE (Pan et al.,
ICLR 2025, arXiv 2503.01090); knowledge neurons (Dai et al., ACL 2022, arXiv 2104.08696). All of them add a vector to rows of
output projections: `w_i ← w_i + δ_i`, for least-norm `δ_i = c_i · γ ⊙ (u_new − u_old)`. `rewrite.rewrite` makes an edit,
`evaluate.evaluate_edit` measures its reliability, generality and locality, `folders.apply_to_folder` writes an edited model;
`interventions.intervening` changes activations while a model runs.

    >>> capture = actstore.open("captions.actstore").capture()
    >>> edit = rewrite(capture, "red-green", RewriteSettings(old="red", new="green"))
    >>> with edited(model, edit):
    ...     model.model.generate(**inputs)
"""
