package celery

// Tombstone is what pull.lua puts in the place of a message.
const Tombstone = tombstone
