// Examples: a text, a question about it, two entities of it, and words of it to leave out.

export const EXAMPLES = [
  {
    name: "Ada Lovelace",
    text: "Ada Lovelace lived in London. She wrote the first program for the Analytical Engine, a machine that Charles Babbage had designed but never finished.",
    question: "Who designed the Analytical Engine?", subject: "Ada Lovelace", object: "London", gap: "the first program",
  },
  {
    name: "Super Bowl 50",
    text: "Super Bowl 50 was an American football game to determine the champion of the National Football League for the 2015 season. The Denver Broncos defeated the Carolina Panthers.",
    question: "Which team won Super Bowl 50?", subject: "Denver Broncos", object: "Carolina Panthers", gap: "an American football game",
  },
  {
    name: "A storm and a flood",
    text: "The flood was caused by a storm that had crossed the coast of Norway on Monday. Nobody was hurt.",
    question: "What caused the flood?", subject: "flood", object: "storm", gap: "the coast",
  },
  {
    name: "Emoji",
    text: "🏔️ Reinhold Messner climbed Mount Everest without oxygen 🎉 and wrote a book about it.",
    question: "Who climbed Mount Everest?", subject: "Reinhold Messner", object: "Mount Everest", gap: "a book",
  },
  {
    name: "From right to left",
    text: "وُلدت آدا لوفلايس في لندن عام 1815، وكتبت أول برنامج.",
    question: "أين وُلدت آدا لوفلايس؟", subject: "آدا لوفلايس", object: "لندن", gap: "أول برنامج",
  },
];
