"""The OpenAPI document of the server, made from the list of options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whisper_opt.core.options import ServeOptions
from whisper_opt.core.version import __version__
from whisper_opt.serving.http.call import FORMATS, GRANULARITIES, LIBRARY_FIELDS
from whisper_opt.serving.http.speakers import MAX_KNOWN

__all__ = ["document"]

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_INTEGER = {"type": "integer"}
_ERROR = {"$ref": "#/components/schemas/Error"}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def document(models: Sequence[str], options: ServeOptions) -> dict[str, Any]:
    """The document, as JSON values.

    Args:
        models: names and aliases of the models.
        options: options of the server.
    """
    paths: dict[str, Any] = {
        "/v1/audio/transcriptions": {"post": _audio("createTranscription", False, models)},
        "/v1/audio/translations": {"post": _audio("createTranslation", True, models)},
        "/v1/models": {"get": _get("listModels", "List the models.", "ModelList")},
        "/v1/models/{model}": {
            "get": {
                **_get("retrieveModel", "Describe a model.", "Model", "404"),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
            }
        },
        **_secrets(),
        "/healthz": {"get": _get("health", "Whether the process answers.", "Status")},
        "/readyz": {"get": _ready()},
    }
    if options.jobs_dir is not None:
        paths.update(_jobs(paths["/v1/audio/transcriptions"]["post"]))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "whisper-opt",
            "version": __version__,
            "description": (
                "Speech to text with the interface of the OpenAI audio API. Files may have up to"
                f" {options.max_upload_bytes} bytes and {options.max_audio_seconds:g} seconds."
            ),
        },
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _audio(name: str, translate: bool, models: Sequence[str]) -> dict[str, Any]:
    results = ["Transcription", "VerboseTranscription"]
    if not translate:
        results.append("DiarizedTranscription")
    content: dict[str, Any] = {
        "application/json": {"schema": {"anyOf": [_reference(one) for one in results]}},
        "text/plain": {"schema": _TEXT},
    }
    if not translate:
        content["text/event-stream"] = {"schema": _TEXT}
    form = {
        "type": "object",
        "required": ["file", "model"],
        "additionalProperties": False,
        "properties": _fields(translate, models),
    }
    summary = "Translate a recording to English." if translate else "Transcribe a recording."
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {"description": "The text.", "content": content},
            **_errors("400", "401", "404", "408", "413", "415", "429", "500", "503"),
        },
    }


def _jobs(transcription: dict[str, Any]) -> dict[str, Any]:
    """The paths of jobs; a job has the fields of a transcription and a webhook."""
    content = transcription["requestBody"]["content"]["multipart/form-data"]["schema"]
    fields = {k: v for k, v in content["properties"].items() if k != "stream"}
    form = {**content, "properties": {**fields, "webhook": {**_TEXT, "format": "uri"}}}
    result = transcription["responses"]["200"]["content"]
    in_path = {"name": "job", "in": "path", "required": True, "schema": _TEXT}
    listed = [
        {"name": "limit", "in": "query", "schema": {**_INTEGER, "minimum": 1, "maximum": 100}},
        {"name": "after", "in": "query", "schema": _TEXT},
    ]
    submit = {
        "operationId": "createJob",
        "summary": "Transcribe a recording later.",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "202": _described("Job"),
            **_errors("400", "401", "404", "408", "413", "415", "429", "500", "503"),
        },
    }
    one = {"parameters": [in_path]}
    shown = _get("listJobs", "List the jobs of this key.", "JobList", "400", "404")
    formats = [
        {"name": "response_format", "in": "query", "schema": {"enum": list(FORMATS)}},
        {
            "name": "timestamp_granularities[]",
            "in": "query",
            "schema": _array({"enum": list(GRANULARITIES)}),
        },
    ]
    return {
        "/v1/jobs": {"post": submit, "get": {**shown, "parameters": listed}},
        "/v1/jobs/{job}": {
            "get": {**_get("retrieveJob", "Describe a job.", "Job", "404"), **one},
            "delete": {**_get("deleteJob", "Cancel and forget a job.", "Deleted", "404"), **one},
        },
        "/v1/jobs/{job}/cancel": {
            "post": {**_get("cancelJob", "Cancel a job.", "Job", "404"), **one}
        },
        "/v1/jobs/{job}/result": {
            "get": {
                "operationId": "resultOfJob",
                "summary": "The text of a completed job.",
                "parameters": [in_path, *formats],
                "responses": {
                    "200": {"description": "The text.", "content": result},
                    **_errors("400", "401", "404", "409", "503"),
                },
            }
        },
    }


def _secrets() -> dict[str, Any]:
    """Client secrets of the WebSocket ``/v1/realtime``, which itself has no place here."""

    def post(name: str, schema: str, **properties: Any) -> dict[str, Any]:
        content = {"application/json": {"schema": {"type": "object", "properties": properties}}}
        made = _get(name, "Make a key for realtime sessions.", schema, "400", "413", "429")
        return {"post": {**made, "requestBody": {"content": content}}}

    after = {"type": "object", "properties": {"anchor": _TEXT, "seconds": _INTEGER}}
    session = {"type": "object"}
    flat = {name: session for name in ("turn_detection", "input_audio_transcription")}
    return {
        "/v1/realtime/client_secrets": post(
            "createClientSecret", "ClientSecret", expires_after=after, session=session
        ),
        "/v1/realtime/transcription_sessions": post(
            "createTranscriptionSession", "TranscriptionSession", **flat, input_audio_format=_TEXT
        ),
    }


def _described(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _reference(schema)}}
    return {"description": "Done.", "content": content}


def _fields(translate: bool, models: Sequence[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "file": {**_TEXT, "format": "binary", "description": "the recording, in any format"},
        "model": {**_TEXT, "examples": list(models)},
        "prompt": {**_TEXT, "description": LIBRARY_FIELDS["initial_prompt"].metadata["help"]},
        "response_format": {
            "enum": list(FORMATS[:-1] if translate else FORMATS),
            "default": "json",
        },
        "temperature": {
            "anyOf": [{**_NUMBER, "minimum": 0, "maximum": 1}, _array(_NUMBER)],
            "description": "0: raised if thresholds fail; an array: the temperatures to try",
        },
    }
    if not translate:
        fields.update(
            {
                "languages": {**_array(_TEXT), "description": "candidates for detection"},
                "keywords": {**_array(_TEXT), "description": "words to expect"},
                "timestamp_granularities": _array({"enum": list(GRANULARITIES)}),
                "include": _array({"enum": ["logprobs"]}),
                "stream": {"type": "boolean", "default": False},
                "known_speaker_names": {**_array(_TEXT), "maxItems": MAX_KNOWN},
                "known_speaker_references": {
                    **_array({**_TEXT, "format": "uri"}),
                    "maxItems": MAX_KNOWN,
                    "description": "a data URL of 2 to 10 s of each known speaker",
                },
                "chunking_strategy": {"anyOf": [{"const": "auto"}, _server_vad()]},
            }
        )
        arrays = [name for name, one in fields.items() if one.get("type") == "array"]
        fields.update({f"{name}[]": fields[name] for name in arrays})
    for name, field in LIBRARY_FIELDS.items():
        fields.setdefault(name, _option(field))
    return fields


def _server_vad() -> dict[str, Any]:
    return _object(
        ["type"],
        type={"const": "server_vad"},
        threshold={**_NUMBER, "default": 0.5},
        prefix_padding_ms={**_INTEGER, "default": 300},
        silence_duration_ms={**_INTEGER, "default": 200},
    )


_KINDS: dict[str, Any] = {
    "text": _TEXT,
    "flag": {"type": "boolean"},
    "integer": _INTEGER,
    "number": _NUMBER,
    "integers": _array(_INTEGER),
    "numbers": _array(_NUMBER),
    "transcript": _TEXT,
}


def _option(field: Any) -> dict[str, Any]:
    """The schema of an option of the library; bounds that are infinite are left out."""
    meta = field.metadata
    schema = {**_KINDS[meta["kind"]], "description": meta["help"]}
    if "choices" in meta:
        schema["enum"] = list(meta["choices"])
    bounds = {"minimum": meta["low"], "maximum": meta["high"]}
    finite = {k: v for k, v in bounds.items() if v is not None and abs(v) != float("inf")}
    return {**schema, **finite}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _get(name: str, summary: str, schema: str, *errors: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": _described(schema),
            **_errors("401", "503", *errors),
        },
    }


def _ready() -> dict[str, Any]:
    content = {"application/json": {"schema": _reference("Status")}}
    return {
        "operationId": "ready",
        "summary": "Whether the models are loaded and warm.",
        "responses": {
            "200": {"description": "Ready.", "content": content},
            "503": {"description": "Loading, or shutting down.", "content": content},
        },
    }


def _errors(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _ERROR}}
    return {status: {"description": "Refused.", "content": content} for status in statuses}


def _schemas() -> dict[str, Any]:
    nullable = {"type": ["string", "null"]}
    segment: dict[str, Any] = {
        **{name: _INTEGER for name in ("id", "seek")},
        **{name: _NUMBER for name in ("start", "end", "temperature", "avg_logprob")},
        **{name: _NUMBER for name in ("compression_ratio", "no_speech_prob")},
        "text": _TEXT,
        "tokens": _array(_INTEGER),
    }
    word = {"word": _TEXT, "start": _NUMBER, "end": _NUMBER, "probability": _NUMBER}
    verbose: dict[str, Any] = {
        "task": _TEXT,
        "language": _TEXT,
        "duration": _NUMBER,
        "text": _TEXT,
    }
    spoken = {
        **{name: _TEXT for name in ("type", "id", "text", "speaker")},
        **{name: _NUMBER for name in ("start", "end")},
    }
    model = {"id": _TEXT, "object": {"const": "model"}, "created": _INTEGER, "owned_by": _TEXT}
    error = {"message": _TEXT, "type": _TEXT, "param": nullable, "code": nullable}
    logprob = _object(
        ("token", "logprob", "bytes"), token=_TEXT, logprob=_NUMBER, bytes=_array(_INTEGER)
    )
    usage = _object(("type", "seconds"), type={"const": "duration"}, seconds=_INTEGER)
    languages = _array(_object(["code"], code=_TEXT))
    time = {"type": ["integer", "null"]}
    seconds = {"type": ["number", "null"]}
    job: dict[str, Any] = {
        **{name: _TEXT for name in ("id", "status", "model", "task")},
        "object": {"const": "transcription.job"},
        "bytes": _INTEGER,
        "created_at": _INTEGER,
        "started_at": time,
        "finished_at": time,
        "progress": _object(("seconds_done", "seconds"), seconds_done=_NUMBER, seconds=seconds),
        "error": {"anyOf": [_object([*error], **error), {"type": "null"}]},
    }
    secret = {"value": _TEXT, "expires_at": _INTEGER}
    return {
        "ClientSecret": _object((*secret, "session"), **secret, session={"type": "object"}),
        "TranscriptionSession": _object(
            ("id", "client_secret"), id=_TEXT, client_secret=_object([*secret], **secret)
        ),
        "Job": _object([*job], **job),
        "JobList": _object(
            ("object", "data", "has_more"),
            object={"const": "list"},
            data=_array(_reference("Job")),
            has_more={"type": "boolean"},
        ),
        "Deleted": _object(
            ("id", "object", "deleted"), id=_TEXT, object=_TEXT, deleted={"const": True}
        ),
        "Error": _object(["error"], error=_object([*error], **error)),
        "Status": _object(["status"], status=_TEXT),
        "Model": _object([*model], **model),
        "ModelList": _object(
            ("object", "data"), object={"const": "list"}, data=_array(_reference("Model"))
        ),
        "Transcription": _object(
            ["text"], text=_TEXT, languages=languages, logprobs=_array(logprob), usage=usage
        ),
        "DiarizedTranscription": _object(
            ("task", "duration", "text", "segments"),
            task=_TEXT,
            duration=_NUMBER,
            text=_TEXT,
            segments=_array(_object([*spoken], **spoken)),
            usage=usage,
        ),
        "VerboseTranscription": _object(
            [*verbose],
            **verbose,
            segments=_array(_object([*segment], **segment)),
            words=_array(_object([*word], **word)),
            dropped=_array({"type": "object"}),
            logprobs=_array(logprob),
            usage=usage,
        ),
    }
