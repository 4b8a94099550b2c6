"""Serving: a published model answers requests in OpenAI's shapes; packaging and a client of the service.

Process:
    service.py                the BentoML service: environment, loading beside the server, the HTTP API
    loading.py                verifies and loads a model, starts the engine, draws a first picture
    loaded_model.py           the model as the HTTP API sees it, once it is ready
    config.py                 all limits, and the environment variables that change them
    metrics.py                Prometheus metrics of an engine

HTTP:
    app.py                    the routes
    middleware.py             request id and log, early rejection, limit on slow readers
    request_body.py           bodies within limits on size and time
    schemas.py                fields of request bodies, each checked
    unsupported_fields.py     fields of OpenAI's API that have no use here: taken with values that change
                              nothing, refused with others
    request_builder.py        from checked bodies to prompts
    images.py                 pictures as data URLs, decoded and encoded
    handlers.py               what a chat or an image request does
    replies.py, streaming.py  whole replies, and streams of events
    errors.py                 errors and their HTTP statuses
    request_log.py            one JSON line for each request
    home_page.py, openapi.py  the page at /, and the OpenAPI document

Engine:
    engine.py                 the thread that owns the model and answers choices in batches
    jobs.py                   a request as a job, a reply as a choice
    job_stream.py             how a request waits for what the engine sends
    stream_decoder.py         from the model's events to texts and pictures
    stop_strings.py           where a text ends
    thread_safe_processor.py  the processor for several threads
    device_errors.py          errors after which only a new process helps

Around it:
    packaging.py              a registered version as a bento
    client.py                 an HTTP client, and a service as a local process
    commands.py               `vargpt package`, `serve` and `ask`
"""
