-- expire: takes results that are too old out of their places, and remembers them.
-- Results of many tasks a call.
--
-- KEYS[1]  the control hash      KEYS[2]  the sorted set of records
-- KEYS[3…] of each result: its task's record, its key; no key twice
-- ARGV[1]  the caller's epoch
-- ARGV[2]  quarantine, ms; 0: the value is not kept
-- ARGV[3]  how long a record lasts, ms; 0: none is written
-- ARGV[4]  '1': a dry run, which writes nothing; neither epoch nor pause matters
-- ARGV[5]  n, how many arguments of a record's first fields follow
-- ARGV[6…5+n]  field, value, …
-- then of each result: the record's id, its member in KEYS[2], and the stamp
-- (stamp.lua): length, head, tail
--
-- Returns 'stale' (another leader, or no control hash) or 'paused': nothing was
-- touched. Else a text with a letter for each result: '1' removed, '0' not there,
-- 'c' changed and left, 'h' held (restored by an operator) and left.
--
-- Record, undo key and quarantine are as in remove.lua, but the evidence is
-- 'expired', which tells nothing of a row: where there is a record, its evidence
-- stays, and so does revived_at. It is written before anything is removed, so that
-- a full memory stops both.
local dry = ARGV[4] == '1'
local control = call('HMGET', KEYS[1], 'epoch', 'paused')
if not dry and control[1] ~= ARGV[1] then
  return 'stale'
end
if not dry and control[2] then
  return 'paused'
end
local quarantine, remember, nfields = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local text = string.format('%.0f', now)
local letters, expired, members, known = '', {}, {}, {}
local at = 6 + nfields

for i = 3, #KEYS, 2 do
  local letter = '1'
  local record = call('HMGET', KEYS[i], 'evidence', 'hold_until')
  local len, head, tail = stamp(KEYS[i + 1])
  if not len then
    letter = '0'
  elseif head ~= ARGV[at + 2] or tail ~= ARGV[at + 3] or len ~= tonumber(ARGV[at + 1]) then
    letter = 'c'
  elseif record[2] and tonumber(record[2]) > now then
    letter = 'h'
  else
    expired[#expired + 1] = i
    -- Two spellings of an id have one record.
    known[i] = record[1] or known[KEYS[i]]
    known[KEYS[i]] = true
    members[#members + 1], members[#members + 2] = text, ARGV[at]
  end
  letters = letters .. letter
  at = at + 4
end
if dry or #expired == 0 then
  return letters
end

local ttls = {}
for _, i in ipairs(expired) do
  local key, fields = KEYS[i + 1], nil
  if known[i] then
    fields = { 'again_at', text }
  else
    fields = { 'removed_at', text, 'evidence', 'expired', 'results', '1', unpack(ARGV, 6, 5 + nfields) }
  end
  if quarantine > 0 and not (known[i] and call('EXISTS', 'orphanwatch:undo:' .. key) == 1) then
    ttls[i] = call('PTTL', key)
    fields[#fields + 1] = '@' .. key
    fields[#fields + 1] = ttls[i] < 0 and '-1' or string.format('%.0f', now + ttls[i])
  end
  if remember > 0 then
    if known[i] then
      call('HINCRBY', KEYS[i], 'results', 1)
    end
    call('HSET', KEYS[i], unpack(fields))
    call('PEXPIRE', KEYS[i], ARGV[3])
  end
end
if remember > 0 then
  call('ZADD', KEYS[2], unpack(members))
end
for _, i in ipairs(expired) do
  local key, ttl = KEYS[i + 1], ttls[i]
  local undo = 'orphanwatch:undo:' .. key
  if not ttl or call('RENAMENX', key, undo) == 0 then
    call('UNLINK', key)
  elseif ttl < 0 or ttl > quarantine then
    call('PEXPIRE', undo, ARGV[2])
  end
end
return letters
