"""The OpenAPI document, made from the table of routes and the records themselves."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from rfaas import __version__
from rfaas.web.routes import PATH_PARAMS, ROUTES, Param, Route
from rfaas.web.view import Fault, Picture

REF = "#/components/schemas/{name}"
FAULTS = {
    "400": "the request is wrong; the text says where",
    "401": "no key, or an unknown one",
    "403": "the key's role is not enough",
    "404": "there is no such thing",
    "409": "not as things are now",
    "413": "the body is too large",
    "503": "not now; ask again later",
}


def document() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    records = [route.answer for route in ROUTES if not isinstance(route.answer, str)]
    records += [route.body for route in ROUTES if route.body is not None]
    _, schemas = msgspec.json.schema_components([*records, Fault, Picture], ref_template=REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = re.sub(r"<(\w+)>", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rFaaS resource manager",
            "version": __version__,
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a key of the file that http.keys names",
                }
            },
            "schemas": {name: _schema(found) for name, found in schemas.items()},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": route.about}
    if isinstance(route.answer, str):
        answer["content"] = {route.answer: {"schema": {}}}
    else:
        answer["content"] = {"application/json": {"schema": _kind(route.answer)}}
    faults = ["400", "413", "503"] + (["401", "403"] if route.role else [])
    if "<" in route.path:
        faults += ["404", "409"]
    problem = {"application/json": {"schema": _kind(Fault)}}
    found: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.about,
        "description": f"Needs a key with role {route.role}." if route.role else "Needs no key.",
        "responses": {
            "200": answer,
            **{code: {"description": FAULTS[code], "content": problem} for code in sorted(faults)},
        },
    }
    if route.name == "readyz":
        found["responses"]["503"] = {**answer, "description": "no lease can be granted now"}
    if not route.role:
        found["security"] = []
    params = [*map(_path_param, re.findall(r"<(\w+)>", route.path)), *map(_param, route.query)]
    if params:
        found["parameters"] = params
    if route.body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _kind(route.body)}},
        }
    return found


def _path_param(name: str) -> dict[str, Any]:
    kind, about = PATH_PARAMS[name]
    schema = _schema(msgspec.json.schema(kind))
    return {"name": name, "in": "path", "required": True, "description": about, "schema": schema}


def _param(param: Param) -> dict[str, Any]:
    schema = _schema(msgspec.json.schema(param.kind)) | {"default": param.default}
    return {"name": param.name, "in": "query", "description": param.about, "schema": schema}


def _kind(record: type) -> dict[str, Any]:
    return {"$ref": REF.format(name=record.__name__)}


def _schema(found: Any) -> Any:
    r"""With patterns as ECMA-262 has them: no \Z there, and $ is the end of the text."""
    if isinstance(found, dict):
        return {
            key: value.replace(r"\Z", "$") if key == "pattern" else _schema(value)
            for key, value in found.items()
        }
    return [_schema(one) for one in found] if isinstance(found, list) else found
