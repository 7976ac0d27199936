from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUTOMATIC: _ClassVar[Task]
    CTR: _ClassVar[Task]
    PSR: _ClassVar[Task]
AUTOMATIC: Task
CTR: Task
PSR: Task

class ScoreRequest(_message.Message):
    __slots__ = ("user_id", "item_ids", "query_id", "query", "task", "time_ms")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    query_id: str
    query: str
    task: Task
    time_ms: int
    def __init__(self, user_id: _Optional[str] = ..., item_ids: _Optional[_Iterable[str]] = ..., query_id: _Optional[str] = ..., query: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., time_ms: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "bundle_version", "known_user", "task", "time_ms", "history_length", "history_used", "retriever", "total_ms")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    KNOWN_USER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    HISTORY_USED_FIELD_NUMBER: _ClassVar[int]
    RETRIEVER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    bundle_version: str
    known_user: bool
    task: Task
    time_ms: int
    history_length: int
    history_used: int
    retriever: str
    total_ms: float
    def __init__(self, scores: _Optional[_Iterable[float]] = ..., bundle_version: _Optional[str] = ..., known_user: _Optional[bool] = ..., task: _Optional[_Union[Task, str]] = ..., time_ms: _Optional[int] = ..., history_length: _Optional[int] = ..., history_used: _Optional[int] = ..., retriever: _Optional[str] = ..., total_ms: _Optional[float] = ...) -> None: ...
