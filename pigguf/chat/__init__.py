"""Conversations inside one context window: prompt formats, tool calls, document questions, summaries."""
