"""The page at /: what this service is and how to use it; loads nothing from anywhere."""

import html

from starlette.requests import Request
from starlette.responses import HTMLResponse

HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>vargpt</title><link rel="icon" href="data:,"></head>
<body style="font-family: sans-serif; max-width: 45em; margin: 3em auto; line-height: 1.5">
<h1>vargpt</h1>
<p>A model that reads text and pictures and answers with text and pictures, in the shapes of OpenAI's API.</p>
<pre style="background: #eee; padding: 1em; overflow: auto">
curl {url}v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"messages": [{{"role": "user", "content": "Draw a red seven on white and describe it"}}]}}'
</pre>
<ul>
<li><a href="v1/models">v1/models</a>: the model, its version and where it comes from</li>
<li><a href="v1/openapi.json">v1/openapi.json</a>: every route, field and error</li>
<li><a href="metrics">metrics</a>: numbers for Prometheus</li>
<li><a href="livez">livez</a>, <a href="readyz">readyz</a>: health</li>
</ul>
</body>
</html>
"""


def home_page(request: Request) -> HTMLResponse:
    """The page, with the address under which it was asked for."""
    return HTMLResponse(PAGE.format(url=html.escape(str(request.base_url))), headers=HEADERS)
