"""From a question to its answer: find documents, fetch their memory, let a decoder answer; and export memory."""
