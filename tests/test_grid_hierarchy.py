"""Substations, regions, drawing positions and hops: dense, deterministic partitions."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from gg_ray.grid.cases import load_case
from gg_ray.grid.hierarchy import BUSES_PER_REGION, hop_distance, regions_of, spring_layout, substations_of

NAMES = ("case14", "case57", "gb29", "case118", "case300", "illinois200", "gb")


@pytest.mark.parametrize("name", NAMES)
def test_partitions_are_dense_pool_and_repeat(name: str) -> None:
    case = load_case(name)
    site, region = substations_of(case), regions_of(case, case.substation)
    np.testing.assert_array_equal(site, case.substation)
    np.testing.assert_array_equal(region, case.region)
    assert np.unique(site).tolist() == list(range(site.max() + 1))
    assert np.unique(region).tolist() == list(range(region.max() + 1))
    assert region.shape == (site.max() + 1,)
    assert site.max() + 1 <= 0.65 * case.n_bus  # pooling pools
    assert region.max() + 1 == max(1, round(case.n_bus / BUSES_PER_REGION))


@pytest.mark.parametrize("name", NAMES)
def test_a_substation_is_one_connected_place(name: str) -> None:
    case = load_case(name)
    graph = nx.Graph(zip(case.f_bus.tolist(), case.t_bus.tolist(), strict=True))
    members: dict[int, list[int]] = {}
    for bus, site in enumerate(case.substation.tolist()):
        members.setdefault(site, []).append(bus)
    assert all(nx.is_connected(graph.subgraph(buses)) for buses in members.values())
    assert max(map(len, members.values())) <= 24  # two sites of at most 12 may pair up


@pytest.mark.parametrize("name", ["case118", "case300", "illinois200", "gb"])
def test_every_region_is_one_piece_and_none_is_huge(name: str) -> None:
    case = load_case(name)
    region = case.region[case.substation]
    graph = nx.Graph(zip(case.f_bus.tolist(), case.t_bus.tolist(), strict=True))
    pieces = [
        nx.number_connected_components(graph.subgraph(np.flatnonzero(region == r).tolist()))
        for r in range(region.max() + 1)
    ]  # fmt: skip
    assert pieces == [1] * len(pieces)
    assert np.bincount(region).max() <= 2 * BUSES_PER_REGION


@pytest.mark.parametrize("name", ["case14", "case118", "gb"])
def test_hops_equal_networkx(name: str) -> None:
    case = load_case(name)
    graph = nx.Graph(zip(case.f_bus.tolist(), case.t_bus.tolist(), strict=True))
    sources = np.array([3, 11])
    want = nx.multi_source_dijkstra_path_length(graph, set(sources.tolist()), weight=None)
    np.testing.assert_array_equal(hop_distance(case, sources), [want[i] for i in range(case.n_bus)])


def test_unreachable_buses_are_n_hops_away() -> None:
    case = load_case("case14")
    keep = (case.f_bus != 7) & (case.t_bus != 7)  # bus 8 hangs on one branch
    cut = replace(case, f_bus=case.f_bus[keep], t_bus=case.t_bus[keep])
    hops = hop_distance(cut, np.array([0]))
    assert hops[7] == 14
    assert (np.delete(hops, 7) < 14).all()


@pytest.mark.parametrize("name", ["case14", "case118"])
def test_drawing_positions_repeat_and_no_two_buses_coincide(name: str) -> None:
    case = load_case(name)
    first = spring_layout(case)
    np.testing.assert_array_equal(first, spring_layout(case))
    assert first.shape == (case.n_bus, 2)
    assert np.unique(first.round(9), axis=0).shape[0] == case.n_bus
