"""The chart's generated files: its templates, and the schema of its values.

Invariant: they follow from k8s/ and pyproject.toml alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deploy.helm.builds import MARKED, OVERLAYS, Manifest, build, components_of, names_groups
from deploy.helm.text import Included, data_lines, document, has
from deploy.helm.tree import GONE, Grafting, When, planted
from deploy.helm.value_schema import schema
from deploy.helm.values import arguments, own_name, valued

CHART = Path(__file__).parent / "dsd"
GROUPS = "many-nodes"  # the component that adds groups of pods, which others change


def generated() -> dict[str, str]:
    """The text of every generated file, by its path in the chart."""
    files, configs = {}, {}
    for overlay in OVERLAYS:
        trees, excluding = grafted(overlay)
        for name, text in _templates(overlay, trees, excluding).items():
            files[f"templates/{overlay}/{name}"] = text
        configs[overlay] = [own_name(_config_of(key), overlay) for key in trees if key.startswith("ConfigMap ")]
    files["values.schema.json"] = json.dumps(schema(configs), indent=2) + "\n"
    return files


def grafted(overlay: str) -> tuple[dict[str, Any], set[frozenset[str]]]:
    """The tree of every object of an overlay, and the pairs of components that exclude each other."""
    components = components_of(overlay)
    groups = [(GROUPS, each) for each in components if GROUPS in components and names_groups(each)]
    sets: list[tuple[str, ...]] = [(), *((each,) for each in components), *groups]
    with ThreadPoolExecutor() as pool:
        builds = dict(zip(sets, pool.map(lambda names: build(overlay, names), sets), strict=True))
    trees, excluding = {key: planted(manifest) for key, manifest in builds[()].items()}, set()
    for component in components:
        grafting = Grafting(component)
        without, having = dict(builds[()]), dict(builds[component,])
        for key, manifest in builds.get((GROUPS, component), {}).items():
            if key not in without and key not in having:
                without[key], having[key] = builds[GROUPS,][key], manifest
        trees = _with(grafting, trees, without, having)
        excluding |= {frozenset((component, other)) for other in grafting.excluded}
    return trees, excluding


def _with(
    grafting: Grafting, trees: dict[str, Any], without: dict[str, Manifest], having: dict[str, Manifest]
) -> dict[str, Any]:
    result = dict(trees)
    for key in dict.fromkeys([*without, *having]):
        node = trees.get(key, GONE)
        old, new = without.get(key, GONE), having.get(key, GONE)
        if isinstance(node, When) and old is not GONE and new is not GONE:  # an object that another one adds or takes
            branches = (node.having, node.lacking)
            chosen, other = (each if each is GONE else grafting.merged(each, old, new) for each in branches)
            result[key] = When(node.component, chosen, other)
        else:
            result[key] = grafting.merged(node, old, new)
    return result


def _templates(overlay: str, trees: dict[str, Any], excluding: set[frozenset[str]]) -> dict[str, str]:
    """Files by part of the system; every ConfigMap's content is a named template, since names follow from it."""
    lines: dict[str, list[str]] = {}
    contents: list[str] = []
    for key, tree in trees.items():
        node = valued(tree, overlay)
        if key.startswith("ConfigMap "):
            contents += _content(overlay, _config_of(key), node)
            node = _including(overlay, _config_of(key), node)
        lines.setdefault(_file_of(key, tree), []).extend(document(node))
    head = f"{{{{- /* Generated from k8s/overlays/{overlay}: python -m deploy.helm */ -}}}}"
    files = {
        name: "\n".join([head, f'{{{{- if eq $.Values.overlay "{overlay}" }}}}', *body, "{{- end }}", ""])
        for name, body in (lines | {"exclusions.yaml": list(_exclusions(excluding))}).items()
        if body
    }
    return files | {"_configs.tpl": "\n".join([head, *contents])}


def _config_of(key: str) -> str:
    name = key.partition(" ")[2]
    marked = MARKED.fullmatch(name)
    return marked[1] if marked else name


def _content(overlay: str, config: str, node: Any) -> Iterator[str]:
    yield f'{{{{- define "{overlay}.{own_name(config, overlay)}" }}}}'
    yield from data_lines(_object_of(node)["data"])
    yield "{{ end }}"  # no dash: the last text keeps its last line's end
    yield ""


def _object_of(node: Any) -> dict[str, Any]:
    """The object itself, where components decide whether it is there."""
    while isinstance(node, When):
        node = node.lacking if node.having is GONE else node.having
    return dict(node)


def _including(overlay: str, config: str, node: Any) -> Any:
    if isinstance(node, When):
        return When(node.component, _including(overlay, config, node.having), _including(overlay, config, node.lacking))
    if node is GONE:
        return node
    return node | {"data": Included(f'include "dsd.config-data" {arguments(overlay, config)}')}


def _file_of(key: str, tree: Any) -> str:
    kind = key.partition(" ")[0]
    if kind in ("ConfigMap", "NetworkPolicy"):
        return {"ConfigMap": "configs.yaml", "NetworkPolicy": "network-policies.yaml"}[kind]
    labels = _object_of(tree)["metadata"].get("labels", {})
    return f"{labels.get('app.kubernetes.io/name', 'others')}.yaml"


def _exclusions(excluding: set[frozenset[str]]) -> Iterator[str]:
    for one, other in sorted(tuple(sorted(pair)) for pair in excluding):
        yield f"{{{{- if and ({has(one)}) ({has(other)}) }}}}"
        yield f'{{{{- fail "components: {one} and {other} exclude each other" }}}}'
        yield "{{- end }}"
