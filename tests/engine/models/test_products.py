"""What a site of a gated product is, told by its name and nothing else."""

import pytest

from actstore.engine.models.names import PRODUCT_SITES, SITES
from actstore.engine.models.products import factor_of


def test_every_site_of_neurons_is_read_from_the_product():
    # A site that was only named once made every gated layer hand out mlp.up under the new name.
    assert [name for name, site in SITES.items() if site.axis == "neuron"] == list(PRODUCT_SITES)


@pytest.mark.parametrize("gate", [0, 1])
def test_each_factor_is_the_one_that_it_is_called(gate):
    assert (factor_of("mlp.gate", gate), factor_of("mlp.up", gate)) == (gate, 1 - gate)
    for other in ("mlp.post", "mlp.pre"):
        with pytest.raises(KeyError):
            factor_of(other, gate)
