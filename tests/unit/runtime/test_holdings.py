"""Bytes that a rank holds whatever its program does."""

from tests.unit.simulator.parts import all_to_all, with_model, workload

from halocast.runtime.programs import METHODS
from halocast.runtime.programs.holdings import holdings

FULL, SAR = METHODS["full"], METHODS["sar"]
ROWS, OWN, DIM = 60, 100, 16


def view(layer, rows=ROWS):
    return with_model(workload(all_to_all(3, rows), own=OWN, dims=(DIM, 4)), layer).view(0)


def test_halo_features_take_room_only_where_they_land_in_place():
    own, everywhere = 4 * OWN * DIM, 4 * (OWN + 2 * ROWS) * DIM
    assert holdings(view("sage-max"), FULL).features == everywhere  # raw rows travel, into the buffer that they belong to
    assert holdings(view("sage-max"), SAR).features == own
    for method in (FULL, SAR):
        assert holdings(view("gat"), method).features == own  # products travel


def test_layers_by_blocks_hold_the_edges_of_each_peer():
    linear, by_blocks = holdings(view("gcn"), SAR).structure, holdings(view("gat"), SAR).structure
    scales = 3 * 4 * (OWN + 2 * ROWS)  # of linear layers alone
    assert by_blocks - (linear - scales) == 16 * 2 * ROWS + 4 * 2 * ROWS
    assert holdings(view("gat", rows=0), SAR).structure == holdings(view("gcn", rows=0), SAR).structure - 3 * 4 * OWN


def test_parameters_come_with_gradients_and_the_optimisers_state():
    count = sum(layer.parameters for layer in view("gin").layers)
    assert holdings(view("gin"), FULL).parameters == 4 * 4 * count
    assert holdings(view("gin"), FULL, optimizer_states=1).parameters == 3 * 4 * count
