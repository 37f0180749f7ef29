from pipelines.query import Query as Query
from pipelines.query import compare as compare
from pipelines.query import query as query
from pipelines.sequential.config import SequentialOptions as SequentialOptions
from pipelines.sequential.session import start as start
from pipelines.strategies.options import QueryOptions as QueryOptions
