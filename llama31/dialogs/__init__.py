"""From dialogs and preferences to the rows of a step.

Imports: config, plan, tokens, data.
Offers: columns (of public data sets), preferences, stepwise, store (encoded once), rows, passes, feed.

Input is JSON lines, JSON arrays or Parquet, UTF-8, one record per line, element or row; other keys than these are
ignored, so a record may carry where it is from.

A dialog (`recipes.sft`; `chat.read`):

    {"messages": [MESSAGE, ...]}        at least one; an assistant's are what is learned, unless their weight is 0
        "tools": [{...}, ...]           optional: functions that may be called, described in JSON
        "builtin_tools": [NAME, ...]    optional: some of chat.BUILTIN; an empty list is code_interpreter alone
        "date": "26 Jul 2024"           optional: today's

A preference (`recipes.reward`, `recipes.dpo`; `preferences.encode`):

    {"messages": [MESSAGE, ...],        what is answered: all turns but the last; or "prompt": TEXT, one user's message
     "chosen": ANSWER,                  ANSWER: a text, a message, or the messages of one turn (calls, results, answer)
     "rejected": ANSWER,
     "strength": STRENGTH}              significantly_better, better, slightly_better or marginally_better; optional
                                        where data.sources.NAME.strength says it of all that state none
        "edited": ANSWER                optional: better than chosen; an empty one is none
        "tools", "builtin_tools", "date"  as in a dialog

    Or, as in TRL and many public sets, "chosen" and "rejected" (and "edited") are whole dialogs: what they share is
    the prompt, and "messages" may repeat the chosen one.

Steps (`recipes.reward objective=steps`; `stepwise.encode`), as `recipes.synthesize task=mathematics` writes them:

    {"question": TEXT,                  what is answered; or "messages", or "prompt"
     "steps": [TEXT, ...],              or "completions", as in TRL; numbers in front of them do not matter
     "labels": [NUMBER, ...]}           of each step 0 (wrong) to 1 (right), or false and true

    MESSAGE: {"role": "system" (or "developer") | "user" | "assistant" | "ipython" (or "tool", "function"), "content":
        TEXT}; an assistant's may call a function, instead or behind its content: {"role": "assistant", "tool_calls":
        [{"function": {"name": ..., "arguments": {...}}}]}; TEXT may be a list of {"type": "text", "text": TEXT}, a
        tool's result any JSON, arguments may be JSON text; null counts as not there. "weight": 0 (or "loss", "train",
        "training": false) makes an assistant's message context, and so does saying nothing.

`columns` reads other shapes of public sets: ShareGPT's, OpenAI's, Anthropic's.

A record that is none ends the command with file, line and what is wrong. What the format cannot say is left out and
counted: several calls in one message, content that is no text, reasoning apart from the content, calls in other forms
or without arguments. So is what teaches nothing: dialogs without a target; preferences with an empty answer, with
answers that hardly differ, or edited into the worse; solutions with an empty step.
"""
