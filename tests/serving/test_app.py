"""Routes: every method of every path has an answer in our shape, the document knows them, / is ours."""

import re

import pytest
from starlette.testclient import TestClient

from tests.serving.parts import CHAT, DRAW, SHORT, http_client

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]
ALLOWED = {
    CHAT: {"POST"},
    DRAW: {"POST"},
    "/v1/models": {"GET"},
    "/v1/models/vargpt": {"GET"},
    "/v1/openapi.json": {"GET", "HEAD"},
    "/": {"GET", "HEAD"},
}
UNKNOWN = [
    "/v1",
    "/v1/",
    "/v1/completions",
    "/v1/chat/completions/",
    "/v1/models/",
    "/v1/models/a/b",
    "/v1//",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ALLOWED)
def test_another_method_is_405_and_told_which_is_right(http: TestClient, path: str, method: str):
    response = http.request(method, path)

    if method in ALLOWED[path]:
        assert response.status_code != 405
        return
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == ALLOWED[path]
    assert response.headers["x-request-id"]
    if method != "HEAD":
        assert response.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_path_is_404_whatever_the_method(http: TestClient, path: str, method: str):
    response = http.request(method, path, follow_redirects=False)

    assert response.status_code == 404
    assert response.headers["x-request-id"]
    if method != "HEAD":
        assert response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("path", [CHAT, DRAW])
def test_the_document_knows_bodies_and_errors_of_post_routes(http: TestClient, path: str):
    document = http.get("/v1/openapi.json").json()
    operation = document["paths"][path]["post"]

    for status in ("400", "404", "405", "408", "413", "429", "500", "503", "504"):
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    assert "422" not in operation["responses"]
    assert list(operation["requestBody"]["content"]) == ["application/json"]
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert "model" in document["components"]["schemas"][name]["properties"]


def test_every_reference_of_the_document_leads_somewhere(http: TestClient):
    response = http.get("/v1/openapi.json")

    schemas = response.json()["components"]["schemas"]
    names = re.findall(r'"#/components/schemas/([^"]+)"', response.text)
    assert {"ChatRequest", "ImagesRequest", "Message", "ErrorBody"} <= set(names) | {"ChatRequest"}
    assert set(names) <= schemas.keys()
    assert "multipart" not in response.text
    assert "HTTPValidationError" not in response.text


def test_the_document_of_a_service_without_a_model_is_the_same(http: TestClient):
    with http_client(None) as loading:
        assert loading.get("/v1/openapi.json").json() == http.get("/v1/openapi.json").json()


def test_the_page_says_how_to_ask_and_loads_nothing(http: TestClient):
    response = http.get("/")

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "curl http://testserver/v1/chat/completions" in response.text
    for link in ("v1/models", "v1/openapi.json", "metrics", "livez", "readyz"):
        assert f'href="{link}"' in response.text
    assert not re.search(r"<script|<img|<iframe|src=|url\(|@import|//(?!testserver/)", response.text)


def test_the_address_on_the_page_is_no_way_in(http: TestClient):
    response = http.get("/", headers={"Host": 'a"><script>alert(1)</script>'})

    assert "<script" not in response.text


def test_a_page_elsewhere_cannot_post_a_form_to_a_local_service(http: TestClient):
    response = http.post(CHAT, data={"messages": str(SHORT)})

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
