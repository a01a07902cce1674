"""A LangChain retriever over a store that can be searched: ``PiscoRetriever(reader=Reader("index/"))``.

Install langchain-core: ``pip install -c constraints.txt langchain-core``.

python examples/langchain_retriever.py STORE "Where does the Nile end?"
"""

import sys

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from pisco_index import Reader


class PiscoRetriever(BaseRetriever):
    """Finds the documents of a store for a question, by full-text search.

    Attributes:
        reader: reader of a store with a search index.
        hits: largest number of documents to return.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    reader: Reader
    hits: int = 5

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        """Return the best documents, best first, each with its id, its text, and its title and score as metadata."""
        found = self.reader.search(query, self.hits)
        ids = [hit.doc_id for hit in found]
        rows = zip(found, self.reader.titles(ids), self.reader.texts(ids), strict=True)
        return [
            Document(id=hit.doc_id, page_content=text, metadata={"title": title, "score": hit.score})
            for hit, title, text in rows
        ]


def main(store: str, question: str) -> None:
    """Print the documents that LangChain gets for a question."""
    with Reader(store) as reader:
        for document in PiscoRetriever(reader=reader).invoke(question):
            print(f"{document.metadata['score']:.2f}  {document.id}  {document.metadata['title']}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
