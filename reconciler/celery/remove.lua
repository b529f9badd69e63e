-- remove: takes the unchanged artifacts of one subject out of their places, and
-- remembers them. One subject a call.
--
-- KEYS[1]  the control hash
-- KEYS[2]  the subject's record      KEYS[3]  the sorted set of records
-- KEYS[4…] the artifacts
-- ARGV[1]  the caller's epoch
-- ARGV[2]  quarantine, ms; 0: the value is not kept
-- ARGV[3]  how long the record lasts, ms; 0: none is written
-- ARGV[4]  the record's id, its member in KEYS[3]
-- ARGV[5]  the evidence
-- ARGV[6]  n, how many arguments of the record's first fields follow
-- ARGV[7…6+n]  field, value, …
-- then of each artifact: kind, and its stamp (stamp.lua): length, head, tail
-- last     until when the caller's look at the row is good, by this server's clock,
--          ms; 0: for ever
--
-- Returns one text: 'stale' (another leader, or no control hash), 'paused',
-- 'held' (restored by an operator), 'late': nothing was touched. Else 'removed', or
-- 'changed' if any artifact has another stamp now, then a space and a letter for
-- each artifact: '1' removed, '0' not there, 'c' changed and left.
--
-- The removed value is renamed to orphanwatch:undo:<key>, which costs the same at
-- any size, until quarantine ends or it would have expired by itself. The first
-- value wins: while there is an undo key, later values are unlinked.
--
-- The record is a hash. Written once: evidence (which later becomes 'deleted' if
-- a later removal was on that), removed_at (ms) and the fields of ARGV; they replace
-- what expire.lua wrote. Updated:
-- again_at (ms), ended (where it is the last field of ARGV), revived_at (gone: the
-- row no longer exists), results, companions (how many), and for each undo key a
-- field '@' .. key: when the original would have expired (ms, -1 never).
-- It is written before the removal, so that a full memory stops both.
local control = call('HMGET', KEYS[1], 'epoch', 'paused')
if control[1] ~= ARGV[1] then
  return 'stale'
end
if control[2] then
  return 'paused'
end
local record = call('HMGET', KEYS[2], 'evidence', 'hold_until')
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local good = tonumber(ARGV[#ARGV])
if good > 0 and now > good then
  return 'late'
end
if record[2] and tonumber(record[2]) > now then
  return 'held'
end
local known = record[1]
local first = not known or known == 'expired' -- which told nothing of a row

local quarantine, remember = tonumber(ARGV[2]), tonumber(ARGV[3])
local nfields = tonumber(ARGV[6])
local status, letters = 'removed ', ''
local found, ttls, counts = {}, {}, {}
local at = 7 + nfields

for i = 4, #KEYS do
  local len, head, tail = stamp(KEYS[i])
  if not len then
    letters = letters .. '0'
  elseif head ~= ARGV[at + 2] or tail ~= ARGV[at + 3] or len ~= tonumber(ARGV[at + 1]) then
    letters, status = letters .. 'c', 'changed '
  else
    letters = letters .. '1'
    found[#found + 1] = KEYS[i]
    ttls[#found] = quarantine > 0 and call('PTTL', KEYS[i])
    counts[ARGV[at]] = (counts[ARGV[at]] or 0) + 1
  end
  at = at + 4
end
if #found == 0 then
  return status .. letters
end

-- Numbers become texts here, since a call writes them with 17 digits, slowly.
local text = string.format('%.0f', now)
local fields
if not first then
  fields = { 'again_at', text, 'evidence', ARGV[5] == 'deleted' and ARGV[5] or known }
  if nfields > 0 and ARGV[5 + nfields] == 'ended' then
    fields[5], fields[6] = 'ended', ARGV[6 + nfields]
  end
else
  fields = { 'removed_at', text, 'evidence', ARGV[5], unpack(ARGV, 7, 6 + nfields) }
end
for i, key in ipairs(found) do
  local undo = 'orphanwatch:undo:' .. key
  if quarantine == 0 or known and call('EXISTS', undo) == 1 then
    ttls[i] = false -- not kept
  else
    fields[#fields + 1] = '@' .. key
    fields[#fields + 1] = ttls[i] < 0 and '-1' or string.format('%.0f', now + ttls[i])
  end
end
for kind, n in pairs(counts) do
  if known then
    call('HINCRBY', KEYS[2], kind, n)
  else
    fields[#fields + 1], fields[#fields + 2] = kind, n
  end
end
if remember > 0 then
  call('HSET', KEYS[2], unpack(fields))
  if known then
    call('HDEL', KEYS[2], 'revived_at')
  end
  call('PEXPIRE', KEYS[2], ARGV[3])
  call('ZADD', KEYS[3], text, ARGV[4])
end

for i, key in ipairs(found) do
  local undo = 'orphanwatch:undo:' .. key
  if not ttls[i] or call('RENAMENX', key, undo) == 0 then
    call('UNLINK', key)
  elseif ttls[i] < 0 or ttls[i] > quarantine then
    call('PEXPIRE', undo, ARGV[2])
  end
end
return status .. letters
